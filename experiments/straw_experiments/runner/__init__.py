"""What any study needs: runs, checkpoints, processes, records; it knows no study."""
