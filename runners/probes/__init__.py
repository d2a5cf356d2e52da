"""Short measurements of this machine, and the cluster's constants they stand for; torch only in the ranks."""
