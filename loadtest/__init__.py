"""Load tests. Each question compares contenders side by side in one run; only the ratios between them count."""
