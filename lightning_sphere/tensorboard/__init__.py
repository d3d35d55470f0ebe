"""Writing to TensorBoard's event files, and reading back what was written. Nothing here needs torch or Lightning."""
