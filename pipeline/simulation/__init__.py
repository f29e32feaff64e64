"""What a run would be like on a described cluster: the driver and its policy are the real ones, time and workers are not."""
