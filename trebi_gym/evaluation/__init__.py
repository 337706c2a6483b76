"""Running episodes under budgets, and showing what came of them."""
