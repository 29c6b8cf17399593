"""What joins sagas to other libraries. Each part needs the extra of its name."""
