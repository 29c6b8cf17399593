from django.contrib import admin
from django.urls import path
from shop import views

urlpatterns = [
    path("", views.products, name="products"),
    path("orders/", views.place, name="place"),
    path("orders/<int:pk>/", views.order, name="order"),
    path("orders/<int:pk>/progress/", views.progress, name="progress"),
    path("admin/", admin.site.urls),
]
