"""What clients of the appliance share, be they a command or the console: how things are drawn, how a conversation goes."""
