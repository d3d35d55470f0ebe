"""Tests that look at the Sphere tab in a browser; a package, so that its fixtures end with it."""
