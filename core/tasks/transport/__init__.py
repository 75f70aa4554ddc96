"""What talks to Redis in Celery's place. Celery loads it by name."""
