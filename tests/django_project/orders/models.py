from django.db import models


class Order(models.Model):
    number = models.CharField(max_length=100, unique=True)


class Effect(models.Model):
    """What a step did. Nothing keeps it from being there twice."""

    what = models.CharField(max_length=100)


class Parcel(models.Model):
    """Refers to its saga with a foreign key, as people do."""

    saga = models.ForeignKey("sagas.Saga", on_delete=models.PROTECT)
