"""What a job will take on a described cluster, before anything is computed or paid for."""
