"""The appliance's network: what the owner wants, applied, looked at again, and taken back."""
