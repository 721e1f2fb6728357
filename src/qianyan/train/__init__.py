"""Training: recipes, the loop, and the bundled models made with them."""
