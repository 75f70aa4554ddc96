raise ImportError("hidden, see tests/commands.py")
