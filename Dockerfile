# The reference shop: one image for its workers, the migration and Flower.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1

WORKDIR /shop

# Dependency groups are new in pip 25.1.
RUN pip install --upgrade "pip>=25.1"

# The library first: this layer stays as long as it does.
COPY pyproject.toml README.md LICENSE ./
COPY sagas sagas
RUN pip install --group shop .

COPY config config
COPY tasks tasks

RUN useradd --system --no-create-home shop
USER shop

CMD ["celery", "-A", "config", "worker", "--loglevel", "INFO"]
