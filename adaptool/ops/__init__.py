"""Operations: inputs in, a Plan or a report out. In weight space none sees a tensor's values."""
