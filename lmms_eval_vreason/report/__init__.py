"""Result folders and journals read back: tables, statistics, plots, leaderboard files. Imports no torch."""
