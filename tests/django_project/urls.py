from django.contrib import admin
from django.urls import path

from sagas.contrib.django.webhooks import webhook
from sagas.webhooks import Webhook
from tests.django_project.orders import views

bank = webhook(Webhook(rate_per_step="5/minute", max_body=1000))

urlpatterns = [
    path("admin/", admin.site.urls),
    path("hooks/bank/", bank),
    path("hooks/bank/<str:token>/", bank),
    path("order/", views.order),
    path("order-async/", views.order_async),
    path("order-await/", views.order_await),
]
