"""Persona vectors: find, prove, monitor and steer character traits of chat models."""
