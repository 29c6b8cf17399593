"""What fits the library into frameworks. Each needs the extra of its name."""
