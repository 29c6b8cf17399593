"""What Flower reads at its start: `celery -A config flower --conf=config/flowerconfig.py` shows sagas, too."""

from sagas.contrib.flower import enable

enable()
