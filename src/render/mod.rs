//! From attribution maps to what goes over the wire: typed tensors, heat maps, overlays, encoded pictures.
