"""Load tests: each question compares contenders side by side in one run, and only the ratios count."""
