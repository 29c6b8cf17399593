from decimal import Decimal

from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=100)
    price = models.DecimalField(max_digits=8, decimal_places=2)
    left = models.PositiveIntegerField()

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    number = models.UUIDField(unique=True)  # created with the form, so that a form sent twice is one order
    product = models.ForeignKey(Product, models.PROTECT)
    quantity = models.PositiveIntegerField()
    status = models.CharField(max_length=20, default="placed")

    class Meta:
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"Order {self.pk}"

    @property
    def total(self) -> Decimal:
        return self.quantity * self.product.price


class Payment(models.Model):
    """Simulates the bank: each request has a key, and runs only once."""

    key = models.CharField(max_length=100, unique=True)
    amount = models.DecimalField(max_digits=8, decimal_places=2)
    status = models.CharField(max_length=20)

    def __str__(self) -> str:
        return f"{self.amount} {self.status}"


class BankOrder(models.Model):
    """The bank's record of a payment that it was asked for. It calls back with the token when it has paid."""

    order = models.UUIDField(unique=True)
    token = models.CharField(max_length=200)
    amount = models.DecimalField(max_digits=8, decimal_places=2)

    def __str__(self) -> str:
        return f"{self.amount} for {self.order}"
