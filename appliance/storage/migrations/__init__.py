"""The way from an empty file to `appliance.storage.tables`, step by step. Run by `Database.upgrade`."""
