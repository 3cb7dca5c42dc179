"""The sections of `lopax explain`: each runs its analyses and says what they found."""
