from django.contrib import admin
from django.urls import path
from shop import views

from sagas.contrib.django.webhooks import webhook

urlpatterns = [
    path("", views.products, name="products"),
    path("orders/", views.place, name="place"),
    path("orders/<int:pk>/", views.order, name="order"),
    path("orders/<int:pk>/progress/", views.progress, name="progress"),
    path("orders/<int:pk>/refund/", views.refund, name="refund"),
    path("bank/", views.bank, name="bank"),
    path("from-bank/<str:token>/", webhook(), name="from_bank"),
    path("admin/", admin.site.urls),
]
