"""Tables: labelled rows write a classifier of further rows."""
