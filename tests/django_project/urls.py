from django.contrib import admin
from django.urls import path

from tests.django_project.orders import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("order/", views.order),
    path("order-async/", views.order_async),
    path("order-await/", views.order_await),
]
