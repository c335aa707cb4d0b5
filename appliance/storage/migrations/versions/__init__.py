"""One file a step, numbered. A step that has been released is never changed."""
