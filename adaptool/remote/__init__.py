"""The Hub: what `hf://` names, pulled and pushed; the only room that touches the network."""
