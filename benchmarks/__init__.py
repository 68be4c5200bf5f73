"""What a delivery, a reply, a join and an idle connection cost the server: ours, a floor in C, and other libraries."""
