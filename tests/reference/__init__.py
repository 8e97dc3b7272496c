"""Independent reference implementations, against which the package is compared number by number."""
