"""The specification's troubleshooting table as a program: looks at the network from the cable up, and says of each thing how it
is, why probably, and what to do. Needs no root; what only root may see is said to be skipped."""
