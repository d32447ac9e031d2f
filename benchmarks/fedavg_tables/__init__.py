"""The tables of the FedAvg paper, trained again."""
