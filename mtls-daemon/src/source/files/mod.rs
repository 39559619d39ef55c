//! Istio objects in a directory of YAML files, reloaded when they change.
