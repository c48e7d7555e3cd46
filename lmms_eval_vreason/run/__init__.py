"""From requests to records: plan, batches, completions, and the processes that share them."""
