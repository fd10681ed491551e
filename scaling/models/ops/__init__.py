"""Operations that models share, chosen once a device."""
