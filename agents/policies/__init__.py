"""Policy classes for Stable-Baselines3, their critics and masks."""
