"""Experiments of POYO-SSL: who pretrains, who fine-tunes, and the table they make."""
