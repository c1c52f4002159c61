"""What every program stands on: processes and launchers, progress, safe printing, hashing. Imports no torch."""
