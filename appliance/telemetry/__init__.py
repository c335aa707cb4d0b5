"""What the appliance says about itself: logs, metrics, statistics."""
