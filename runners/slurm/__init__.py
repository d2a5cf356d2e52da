"""Trials on the nodes of Slurm: inside an allocation, or as batch jobs of their own."""
