"""How it learns: objectives, the step, checkpoints, evaluation, generation and export."""
