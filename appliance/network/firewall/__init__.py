"""The firewall: one nftables table of our own, made from network.yaml and replaced in one transaction."""
