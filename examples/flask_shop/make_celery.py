"""The shop's worker: `celery -A examples.flask_shop.make_celery worker`."""

from examples.flask_shop import create_app

flask_app = create_app()
celery_app = flask_app.extensions["celery"]
