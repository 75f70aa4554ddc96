from core.config import Settings


class AppSettings(Settings):
    pass
