"""Make the pages of this repository from its records and from conf/: `make results`. No part of the package."""
