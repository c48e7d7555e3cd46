"""What a model is asked, how its answer is split, and the budgets that bound it."""
