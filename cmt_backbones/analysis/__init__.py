"""What models cost: parameters and multiply-adds, time and memory, beside other models."""
