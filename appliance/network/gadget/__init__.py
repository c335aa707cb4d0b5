"""The USB port towards a desktop: one composite device, a serial line (CDC-ACM) and a network (CDC-NCM), in configfs."""
