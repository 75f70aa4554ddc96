"""The fixtures for containers are loaded where Docker is: importing them takes a second."""

from marks import HAS_DOCKER

if HAS_DOCKER:
    from containers.worker import *  # noqa: F403
