"""To and from other programs: control vectors, LoRA and PEFT adapters, pairs."""
